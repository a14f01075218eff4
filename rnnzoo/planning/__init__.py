"""Plans for devices that are not there: what fits, and what limits its speed.

`experiments.train --plan=v5e:16x16` is the command line of this package.
"""

from rnnzoo.planning.compiling import plan as plan
from rnnzoo.planning.verdicts import advice as advice
from rnnzoo.planning.verdicts import roofline as roofline
from rnnzoo.planning.verdicts import verdict as verdict
