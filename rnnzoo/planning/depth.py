"""How many instructions of a compiled program must follow each other."""

from rnnzoo.planning import hlo
from rnnzoo.planning import traffic


def critical_path(program: hlo.Program) -> int | None:
  """Counts the instructions on the longest path from arguments to results.

  An instruction that is not fused into another one, such as a fusion, a product
  or a kernel, counts once, however long it takes. It follows those whose
  results it reads. The body of a loop counts in each round. What moves nothing,
  such as a tuple, does not count.

  Args:
    program: The compiled program.

  Returns:
    The number, or `None` if a loop runs until its state says so.
  """
  rounds = {loop.name: loop.rounds for loop in program.loops}
  if None in rounds.values():
    return None
  lengths = {}

  def length(name):
    if name not in lengths:
      ends = {}
      for one in program.computations.get(name, {}).values():
        before = max((ends.get(u, 0) for u in one.operands), default=0)
        ends[one.name] = before + cost(one)
      lengths[name] = max(ends.values(), default=0)
    return lengths[name]

  def cost(one):
    if one.opcode == 'while':
      return rounds[one.name] * sum(map(length, one.called('body')))
    if one.opcode in ('call', 'conditional'):
      return max(map(length, one.called(
          'to_apply', 'branch_computations', 'true_computation',
          'false_computation',
      )), default=0)
    return int(not traffic.is_still(one.opcode))

  return length(program.entry)
