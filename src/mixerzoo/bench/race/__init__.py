"""The race: ours against what a user would pick instead, on the same weights and images, turn by turn in one run.

A parent process (:mod:`mixerzoo.bench.race.runner`) gives each contender a worker process of its own and asks them in
turn for a round of calls, so that every ratio comes from the same minutes; one more worker multiplies plain matrices in
every round, so that each figure is also a share of what the machine could do at that time.
"""
