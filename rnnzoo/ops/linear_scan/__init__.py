"""The linear recurrence `h_t = a_t * h_{t-1} + x_t` on every platform.

`api.py` has the public function, `gradient.py` the gradient of all backends,
and `dispatch.py` chooses a backend and runs it on what each device holds.
`backend.py` has the contract of a backend; each backend is a file of its own.
"""
