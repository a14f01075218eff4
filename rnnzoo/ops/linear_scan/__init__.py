"""`h_t = a_t * h_{t-1} + x_t`: the public function is in `api.py`.

`core.py` has the gradient, and the choice of an implementation. Each of these
is a module with a plain function

    scan(inputs, h0, reset, mask, *, gate, reverse, decay_after) -> (last, h)

of `inputs`, a tuple of arrays `[B|1, T|1, D|1]` the last of which is `[B, T,
D]` with T >= 1 and has the dtype of `h`; `h0` `[B, D]` in the accumulation
dtype; `reset` and `mask` `[B, T]` or None. `gate(start, *inputs)` gives `a` and
`x`, element by element, in the accumulation dtype (`gates.py`). In the
direction of travel, and with `reset_t` replacing the decayed state by zero,

    decay_after=False    h_t = a_t * h_{t-1} + x_t,              last = h_T
    decay_after=True     h_t = c_{t-1} + x_t,  c_t = a_t * h_t,  last = c_T

Where `mask_t` is False, `a_t = 1` and, in the first form, `x_t = 0`. The second
form is the adjoint of the first run the other way, and the first that of the
second. So one gradient rule closes over both, to any order, and the backward
pass needs no shifted copy of `a`. A kernel may bring

    gradient(inputs, h, h0, reset, mask, dlast, dh, *, gate, reverse)
        -> (dinputs, dh0)

which does in one sweep what takes a scan and a pass over its results. It must
not look at the last input if the gate is `gates.linear`; what it returns for an
input of size 1 along an axis may be still unsummed there. And

    summary(inputs, reset, mask, *, gate, reverse, decay_after)
        -> (product, last)

for a stretch of time on one of several devices: the product of all `a_t`, 0 if
there is a reset, and what the scan would come to from zero, both `[B, D]`; and
`supports(...)`, which says in a sentence why it cannot take some inputs.
"""
