"""Conversations: the carry is kept, and the replies are what they were."""

import importlib.util
import io
import json
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import chatting
from experiments.cli import opening
from flax import nnx
import numpy as np
from rnnzoo import convert
from rnnzoo import errors
from rnnzoo import generation
from rnnzoo import models
from rnnzoo.data import bpe
from rnnzoo.data import vocabulary as vocabularies
from tests.experiments import commands
import tokenizers

LENGTH = 12
GREEDY = generation.Sampling(temperature=0)
TEMPLATE = (
    '{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}'
    '{% if add_generation_prompt %}<assistant>{% endif %}'
)
# Only the last message is in the text.
FORGETFUL = '<user>{{ messages[-1].content }}<end><assistant>'


def make_folder(folder):
  """Writes a small model with a tokenizer and a chat template."""
  tokenizer = tokenizers.Tokenizer.from_str(
      bpe.train(['to be or not to be that is the question\n' * 9], 270)
  )
  tokenizer.add_special_tokens(['<user>', '<assistant>', '<end>'])
  config = models.PRESETS['mamba2_130m'].replace(
      num_layers=1, features=16, vocab_size=tokenizer.get_vocab_size(),
      tie_embeddings=False,
  )
  model = models.LanguageModel(config, rngs=nnx.Rngs(0))
  convert.save_pretrained(model, folder)
  tokenizer.save(str(folder / 'tokenizer.json'))
  (folder / 'chat_template.jinja').write_text(TEMPLATE)


@absltest.skipUnless(
    importlib.util.find_spec('safetensors')
    and importlib.util.find_spec('jinja2'),
    'safetensors or jinja2 is not installed.',
)
class ChatTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = commands.temporary_directory(cls) / 'pretrained'
    make_folder(cls.folder)
    cls.opened = opening.open_pretrained(cls.folder)

  def conversation(self, **changes):
    options = dict(seed=0, length=LENGTH, sampling=GREEDY, chunk=16)
    stop_strings = changes.pop('stop_strings', ())
    return chatting.Conversation(
        self.opened._replace(**changes), stop_strings=stop_strings, **options
    )

  def encode(self, text):
    return bpe.encode(self.opened.run.vocabulary.symbols, text)

  def say(self, conversation, text):
    return ''.join(conversation.reply([dict(role='user', content=text)]))

  def write(self, ids):
    rows = generation.generate(
        self.opened.run.model, np.array([ids]), length=LENGTH, temperature=0
    )
    return rows[0].tolist()

  def test_the_carry_is_kept(self):
    decode = self.opened.run.vocabulary.decode
    conversation = self.conversation()
    start = self.encode('<user>to be<end><assistant>')
    first = self.write(start)
    self.assertEqual(self.say(conversation, 'to be'), decode(first))
    self.assertEqual(conversation.tokens_read, len(start))
    # Only what is new is read, and the reply is that to all of it.
    new = self.encode('<end><user>or not<end><assistant>')
    second = self.write([*start, *first, *new])
    self.assertEqual(self.say(conversation, 'or not'), decode(second))
    self.assertEqual(conversation.tokens_read, len(new))
    self.assertEqual(conversation.messages, [
        dict(role='user', content='to be'),
        dict(role='assistant', content=decode(first)),
        dict(role='user', content='or not'),
        dict(role='assistant', content=decode(second)),
    ])

  def test_a_stop_token_is_not_read_twice(self):
    decode = self.opened.run.vocabulary.decode
    start = self.encode('<user>to be<end><assistant>')
    first = self.write(start)
    stop = first[3]
    own = first[: first.index(stop)]
    # It stands after a reply in the text, as `<end>` does for real models.
    template = TEMPLATE.replace(
        '<end>',
        '{{ "<end>" if m.role == "user" else "' + decode([stop]) + '" }}',
    )
    conversation = self.conversation(
        stop=(stop,), template=convert.ChatTemplate(template)
    )
    self.assertEqual(self.say(conversation, 'to be'), decode(own))
    new = self.encode('<user>or not<end><assistant>')
    second = self.write([*start, *own, stop, *new])
    second = second[: second.index(stop)] if stop in second else second
    self.assertEqual(self.say(conversation, 'or not'), decode(second))
    self.assertEqual(conversation.tokens_read, len(new))

  def test_a_tokenizer_that_puts_a_space_before_a_text(self):
    end = self.write([5])[0]  # What the model replies to 'to'.
    to, be, spaced = 5, *[i for i in range(8) if i not in (5, end)][:2]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(
        {'▁to': to, 'be': be, '▁be': spaced, '<end>': end}, '<end>'
    ))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(
        prepend_scheme='first'
    )
    tokenizer.add_special_tokens(['<end>'])
    conversation = self.conversation(
        run=self.opened.run._replace(
            vocabulary=vocabularies.Vocabulary('bpe', tokenizer.to_str())
        ),
        stop=(end,), template=convert.ChatTemplate(
            '{% for m in messages %}{{ m.content }}'
            '{{ "<end>" if m.role == "assistant" }}{% endfor %}'
        ),
    )
    self.assertEqual(self.say(conversation, 'to'), '')
    writer = conversation._writer
    with mock.patch.object(writer, 'read', wraps=writer.read) as read:
      self.say(conversation, 'be')
    self.assertEqual(read.call_args.args[0].tolist(), [[be]])

  def test_a_text_that_changes_is_read_again(self):
    decode = self.opened.run.vocabulary.decode
    forgetful = self.conversation(template=convert.ChatTemplate(FORGETFUL))
    self.say(forgetful, 'the')
    start = self.encode('<user>to be<end><assistant>')
    first = decode(self.write(start))
    self.assertEqual(self.say(forgetful, 'to be'), first)
    self.assertEqual(forgetful.tokens_read, len(start))
    # A stop string is cut from the reply, but the carry has it.
    conversation = self.conversation(stop_strings=[first[4:7]])
    self.assertEqual(self.say(conversation, 'to be'), first.partition(
        first[4:7]
    )[0])
    self.say(conversation, 'or')
    self.assertGreater(conversation.tokens_read, len(start))
    # So is that of a reply that was broken off.
    conversation = self.conversation()
    next(conversation.reply([dict(role='user', content='or not')]))
    self.assertEqual(self.say(conversation, 'to be'), first)

  def test_commands(self):
    messages = [dict(role='user', content='to be')]
    file = self.folder.parent / 'messages.json'
    file.write_text(json.dumps(messages))
    generate = commands.imported('experiments.generate')
    said, conversation = io.StringIO(), self.conversation()
    with mock.patch.object(sys, 'stdout', said):
      generate.chat(conversation, chatting.read_messages(file), False)
    start = self.encode('<user>to be<end><assistant>')
    reply = self.opened.run.vocabulary.decode(self.write(start))
    self.assertEqual(said.getvalue(), reply + '\n')
    self.assertLen(conversation.messages, 2)
    lines = iter(['', 'or not'])

    def type_in(_):
      try:
        return next(lines)
      except StopIteration as error:
        raise EOFError from error

    with (
        mock.patch.object(sys, 'stdout', said),
        mock.patch('builtins.input', type_in),
    ):
      generate.chat(conversation, [], True)
    self.assertLen(conversation.messages, 4)
    self.assertEqual(conversation.messages[2]['content'], 'or not')
    done = commands.Command(
        'experiments.generate', f'--pretrained={self.folder}',
        f'--messages={file}', f'--length={LENGTH}', '--temperature=0',
    ).wait()
    self.assertEqual(done.code, 0, done)
    self.assertEqual(done.stdout, reply + '\n')
    self.assertRegex(done.stderr, rf'prefill {len(start)} tokens, \d+ tokens/s')

  def test_bad_input(self):
    with self.assertRaisesRegex(errors.UserValueError, 'no chat template'):
      self.conversation(template=None)
    file = self.folder.parent / 'bad.json'
    with self.assertRaisesRegex(errors.UserError, 'There is no file'):
      chatting.read_messages(file)
    for text, message in (
        ('[', 'is not JSON'), ('[' * 100_000, 'is not JSON'),
        ('{}', 'must be a list'),
    ):
      file.write_text(text)
      with self.assertRaisesRegex(errors.UserValueError, message):
        chatting.read_messages(file)


if __name__ == '__main__':
  absltest.main()
