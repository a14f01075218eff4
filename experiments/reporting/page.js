// The filters: sections by task; rows, curves and commands by layer.
const form = document.querySelector('form.filters');
const task = document.getElementById('task');
const layer = document.getElementById('layer');

// Whether a section is of the chosen task, or in the chosen folder, `lra/`.
function chosen(section) {
  const name = section.dataset.task;
  return task.value === '' || name === task.value ||
      (task.value.endsWith('/') && name.startsWith(task.value));
}

function update() {
  let measured = 0;
  let missing = 0;
  for (const section of document.querySelectorAll('section.config')) {
    for (const part of section.querySelectorAll('[data-layer]')) {
      part.hidden = layer.value !== '' && part.dataset.layer !== layer.value;
    }
    const notRun = section.querySelectorAll('tr.missing:not([hidden])').length;
    const rows =
        section.querySelectorAll('tr[data-layer]:not([hidden])').length;
    for (const list of section.querySelectorAll('details.missing')) {
      list.hidden = notRun === 0;
      list.open = layer.value !== '' || task.value !== '';
      list.querySelector('summary span').textContent = notRun;
    }
    // Curves, table and commands are of what was measured.
    const results = 'figure, table.of-7, details:not(.missing)';
    for (const part of section.querySelectorAll(results)) {
      part.hidden = rows === notRun;
    }
    for (const curve of section.querySelectorAll('g.curve')) {
      const name = curve.dataset.name;
      const faint = layer.value !== '' && name !== layer.value &&
          !name.startsWith(layer.value + ', ');
      curve.classList.toggle('faint', faint);
    }
    section.hidden = rows === 0 || !chosen(section);
    if (!section.hidden) {
      measured += rows - notRun;
      missing += notRun;
    }
  }
  for (const rest of document.querySelectorAll('section.rest')) {
    rest.hidden = task.value !== '' || layer.value !== '';
  }
  document.getElementById('shown').textContent =
      measured + ' measured, ' + missing + ' not run';
}

form.hidden = false;
form.addEventListener('submit', (event) => event.preventDefault());
form.addEventListener('change', update);
update();  // A browser may have kept the choice of before.
