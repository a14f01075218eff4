"""`h_t = a_t * h_{t-1} + x_t`: the public function is in `api.py`.

Every implementation in this folder is a plain function

    scan(a, x, h0, reset, *, reverse, decay_after) -> (last, h)

of `a` `[B|1, T|1, D|1]`, `x` `[B, T, D]` with T >= 1, `h0` `[B, D]` in the
accumulation dtype and `reset` `[B, T]` or None, where, in the direction of
travel and with `reset_t` replacing the decayed state by zero,

    decay_after=False    h_t = a_t * h_{t-1} + x_t,              last = h_T
    decay_after=True     h_t = c_{t-1} + x_t,  c_t = a_t * h_t,  last = c_T

The second form is the adjoint of the first run the other way, and the first
that of the second. So one gradient rule closes over both, to any order, and
the backward pass needs no shifted copy of `a`.
"""
