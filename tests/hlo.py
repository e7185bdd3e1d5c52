"""What a compiled program does, read from its text."""

import re


def copies_in_loops(hlo, capacity) -> list[str]:
    """Copies of [capacity, ...] buffers in the bodies of loops and what they call."""
    bodies, name = {}, None
    for line in hlo.splitlines():
        header = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{", line)
        if header:
            name = header.group(1)
            bodies[name] = []
        elif name is not None:
            bodies[name].append(line)
    called = r"(?:body|calls|to_apply|branch_computations)=\{?([%\w.\-, ]+)"
    todo = re.findall(r"body=%?([\w.\-]+)", hlo)
    assert todo, "no while loop in the program"
    seen = set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for line in bodies[name]:
            for names in re.findall(called, line):
                todo += [n for n in re.findall(r"[\w.\-]+", names) if n in bodies]
    buffer = rf"\[{capacity}[,\]][^=]* copy(?:-start)?\("
    return [ln for n in seen for ln in bodies[n] if re.search(buffer, ln)]
