// The filters: sections by task; rows, curves and commands by layer.
const form = document.querySelector('form.filters');
const task = document.getElementById('task');
const layer = document.getElementById('layer');

function update() {
  let shown = 0;
  for (const section of document.querySelectorAll('section.config')) {
    let rows = 0;
    for (const part of section.querySelectorAll('[data-layer]')) {
      part.hidden = layer.value !== '' && part.dataset.layer !== layer.value;
      if (part.tagName === 'TR' && !part.hidden) rows += 1;
    }
    for (const curve of section.querySelectorAll('g.curve')) {
      const name = curve.dataset.name;
      const faint = layer.value !== '' && name !== layer.value &&
          !name.startsWith(layer.value + ', ');
      curve.classList.toggle('faint', faint);
    }
    section.hidden = rows === 0 ||
        (task.value !== '' && section.dataset.task !== task.value);
    if (!section.hidden) shown += rows;
  }
  for (const rest of document.querySelectorAll('section.rest')) {
    rest.hidden = task.value !== '' || layer.value !== '';
  }
  document.getElementById('shown').textContent =
      shown === 1 ? '1 row' : shown + ' rows';
}

form.hidden = false;
form.addEventListener('submit', (event) => event.preventDefault());
form.addEventListener('change', update);
update();  // A browser may have kept the choice of before.
