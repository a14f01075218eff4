"""Chat templates: where they stand in a folder, and what they may do."""

import doctest
import importlib.util
import json
import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from rnnzoo import convert
from rnnzoo import errors
from rnnzoo.convert import chat

CHATML = (
    '{{ bos_token }}{% for message in messages %}\n'
    '  {%- if message.role == "fool" %}{% continue %}{% endif %}\n'
    "{{ '<|im_start|>' + message['role'] + '\\n' }}\n"
    '  {%- generation %}{{ message.content | trim }}{% endgeneration %}\n'
    "{{- '<|im_end|>' + '\\n' }}\n"
    '{%- endfor %}\n'
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    '{% endif %}'
)
USER = dict(role='user', content='Hi ☃')


@absltest.skipUnless(
    importlib.util.find_spec('jinja2'), 'jinja2 is not installed.'
)
class RenderTest(parameterized.TestCase):

  def test_text(self):
    template = convert.ChatTemplate(CHATML, dict(bos_token='<s>'))
    fool = dict(role='fool', content='?')
    reply = dict(role='assistant', content=' Ho ')
    self.assertEqual(
        template.render([USER, fool, reply]),
        '<s><|im_start|>user\nHi ☃<|im_end|>\n'
        '<|im_start|>assistant\nHo<|im_end|>\n<|im_start|>assistant\n',
    )
    self.assertEndsWith(
        template.render([USER], add_generation_prompt=False), '☃<|im_end|>\n'
    )

  def test_functions(self):
    template = convert.ChatTemplate(
        '{{ messages | tojson }}{{ strftime_now("%%") }}'
    )
    self.assertEqual(
        template.render([USER]), '[{"role": "user", "content": "Hi ☃"}]%'
    )
    template = convert.ChatTemplate(
        '{% if tools is not none or documents is undefined %}tools{% endif %}'
        '{{ dict(a=1) | tojson(ensure_ascii=True, separators=(",", ":")) }}'
    )
    self.assertEqual(template.render([USER]), '{"a":1}')

  @parameterized.parameters(
      ('{{ messages.__class__.__mro__ }}', 'SecurityError'),
      ('{{ messages.append(1) }}', 'SecurityError'),
      ('{{ messages[0].update(a=1) }}', 'SecurityError'),
      ('{{ dict.update(messages[0], a=1) }}', 'UndefinedError'),
      ('{{ raise_exception.__globals__.os }}', 'SecurityError'),
      ('{{ "".__class__.__base__.__subclasses__() }}', 'SecurityError'),
      ('{% for i in range(10**7) %}{% endfor %}', 'OverflowError'),
      ('{% include "/etc/passwd" %}', 'no loader'),
      ('{% if %}', 'TemplateSyntaxError'),
      ('{{ 1 / 0 }}', 'ZeroDivisionError'),
      ('{{ raise_exception("no\nsystem") }}', 'refuses the messages: no system')
  )
  def test_what_it_may_not(self, source, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      print(convert.ChatTemplate(source).render([USER]))

  def test_docstring(self):
    self.assertEqual(doctest.testmod(chat).failed, 0)


class FolderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory())
    )

  def write(self, **values):
    (self.folder / chat.CONFIG).write_text(json.dumps(values))

  def test_where_it_stands(self):
    self.assertIsNone(convert.chat_template(self.folder))
    self.write(bos_token='<s>')
    self.assertIsNone(convert.chat_template(self.folder))
    self.write(
        chat_template='one', eos_token=dict(content='</s>', special=True),
        bos_token='<s>', pad_token=None, tokenizer_class='x',
    )
    found = convert.chat_template(self.folder)
    self.assertEqual(found.source, 'one')
    self.assertEqual(found.tokens, dict(eos_token='</s>', bos_token='<s>'))
    (self.folder / chat.TOKENS).write_text(
        '{"bos_token": "<old>", "unk_token": {"content": "<unk>"}}'
    )
    found = convert.chat_template(self.folder)
    self.assertEqual(found.tokens, dict(
        eos_token='</s>', bos_token='<s>', unk_token='<unk>'
    ))
    self.write(chat_template=[
        dict(name='tool_use', template='two'),
        dict(name='default', template='three'),
    ])
    self.assertEqual(convert.chat_template(self.folder).source, 'three')
    (self.folder / chat.FILE).write_text('four')
    self.assertEqual(convert.chat_template(self.folder).source, 'four')

  def test_damaged(self):
    self.write(chat_template=3)
    with self.assertRaisesRegex(errors.UserValueError, 'must be a text, got 3'):
      convert.chat_template(self.folder)
    (self.folder / chat.FILE).write_bytes(b'\xff')
    with self.assertRaisesRegex(errors.UserValueError, 'is not UTF-8 text'):
      convert.chat_template(self.folder)

  @parameterized.parameters(
      ([],), ('Hello',), (['Hello'],), ([dict(role='user')],),
      ([dict(role=1, content='')],),
  )
  def test_messages(self, messages):
    with self.assertRaisesRegex(errors.UserValueError, 'must be a list of obj'):
      convert.ChatTemplate('').render(messages)

  def test_without_the_library(self):
    with mock.patch.dict(sys.modules, jinja2=None):
      with self.assertRaisesRegex(errors.UserError, r"pip install jinja2$"):
        convert.ChatTemplate('').render([USER])
    if not importlib.util.find_spec('jinja2'):
      return
    with mock.patch('importlib.metadata.version', return_value='3.1.5'):
      with self.assertRaisesRegex(errors.UserError, '3.1.6 or newer, got 3.1'):
        convert.ChatTemplate('').render([USER])


if __name__ == '__main__':
  absltest.main()
