"""Whether steering is worth it on a workload: the same queries under a model and under what it has to beat.

`evaluation.evaluate` does all of it: it reads the queries (`cases`), divides them in ways that mean something
(`splits`), counts true cardinalities (`truth`), asks the models (`contenders`), runs everything in turns (`runs`) and
keeps every timing (`results`). `report` and `charts` make one HTML page of it.
"""
