"""Says which collectives a run's program has:  collectives.py GROUPSxROWS

Compiled for virtual CPU devices, one seed for each group of them. Prints JSON: for each
kind of collective the number of instructions and the bytes that they hand over.
"""

import json
import math
import re
import sys
from collections import Counter
from typing import Any

import jax

KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
BYTES = {"pred": 1, "s32": 4, "u32": 4, "f32": 4}


def collectives(hlo) -> dict[str, list[int]]:
    """Counts and bytes by kind, from a compiled program's text."""
    counts, sizes = Counter(), Counter()
    for shapes, kind in re.findall(rf"= (.*?) ({KINDS})(?:-start)?\(", hlo):
        counts[kind] += 1
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            size = math.prod(int(n) for n in shape.split(",") if n)
            sizes[kind] += BYTES[dtype] * size
    return {kind: [counts[kind], sizes[kind]] for kind in counts}


def main(groups, rows) -> None:
    jax.config.update("jax_num_cpu_devices", groups * rows)
    from experiments.config import benchmarks, presets
    from experiments.config.run_config import RunConfig
    from experiments.training import placement
    from experiments.training.inputs import place
    from experiments.training.programs import compile_programs

    (hyper,) = presets.resolve("digits-rotations", ["lamaml"], {})
    benchmark = benchmarks.get_benchmark("digits-rotations")
    config = RunConfig(benchmark, "lamaml", tuple(range(groups)), hyper)
    data = benchmarks.load(benchmark, config.seeds)
    inputs = place(data, config.seeds, placement.make_mesh(None, rows))
    (program,) = compile_programs([[config]], inputs)
    made = program.compiled
    programs = {"train": made.train_task, "evaluate": made.evaluate}
    found: dict[str, Any] = {
        name: collectives(each.as_text()) for name, each in programs.items()
    }
    weights = jax.tree.leaves(program.state.weights)
    found["weight_bytes"] = sum(4 * math.prod(leaf.shape[1:]) for leaf in weights)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(int, sys.argv[1].split("x")))
