"""Training again while a model serves: on a schedule and on events, with a champion and a challenger.

`events` says when, `jobs` keeps what is to be done across crashes, `workload` gathers recent statements, `challenge`
trains a candidate and judges it against what serves, `handover` puts it in place, and `trainer` is the loop over all of
it. Nothing here is on the way of a query: the trainer is a process of its own beside serving.
"""
