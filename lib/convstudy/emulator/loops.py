# SPDX-License-Identifier: MIT
"""Which loops of a kernel each of its basic blocks lies in, read from the machine code.

Two lanes of a warp make an access together if they are in the same iteration of every loop around
it. The compiler reports each basic block that a thread enters (-fsanitize-coverage=trace-pc); the
loops themselves are the natural loops of the control-flow graph, found by dominators.

References
----------
Aho, Lam, Sethi, Ullman, Compilers: Principles, Techniques, and Tools, 2nd ed., section 9.6.
"""

import itertools
import re
from dataclasses import dataclass, field

TRACE = "__sanitizer_cov_trace_pc"

_FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$")
_TARGET = re.compile(r"\b([0-9a-f]+) <([^>+]+)")
_END = re.compile(r"^(ret|retq|ud2|hlt|br|udf|brk)$")
_ALWAYS = re.compile(r"^(jmp|jmpq|b)$")
_MAYBE = re.compile(r"^(j[a-z]+|b\.[a-z]+|cbn?z|tbn?z)$")


@dataclass
class _Block:
    start: int
    successors: list = field(default_factory=list)
    traces: list = field(default_factory=list)  # return addresses of calls of TRACE


@dataclass(frozen=True)
class Loops:
    """The loops of a shared object.

    Attributes
    ----------
    parents : list of int
        For each loop the one around it; -1 for none.
    blocks : list of (int, int, bool)
        For each traced block: the address that its trace reports, its innermost loop (-1 for
        none), and whether entering it begins an iteration of that loop.
    """

    parents: list
    blocks: list


def find_loops(disassembly):
    """Return the `Loops` in the text that ``objdump -d --no-show-raw-insn`` prints."""
    found = Loops([], [])
    for name, instructions in _functions(disassembly):
        if any(TRACE in operands for _, _, operands in instructions):
            _add_function(found, _graph(name, instructions))
    return found


def _functions(disassembly):
    name, instructions = "", []
    for line in disassembly.splitlines():
        if match := _FUNCTION.match(line):
            yield name, instructions
            name, instructions = match[1], []
        elif match := _INSTRUCTION.match(line):
            instructions.append((int(match[1], 16), match[2], match[3]))
    yield name, instructions


def _graph(name, instructions):
    """Return the basic blocks of one function, the entry first, by where they start."""
    jumps, leaders = {}, {instructions[0][0]}
    addresses = [address for address, _, _ in instructions]
    following = dict(itertools.pairwise(addresses))
    for address, mnemonic, operands in instructions:
        always, maybe = _ALWAYS.match(mnemonic), _MAYBE.match(mnemonic)
        if not (always or maybe or _END.match(mnemonic)):
            continue
        target = _TARGET.search(operands)
        inside = target and target[2] == name
        ways = [int(target[1], 16)] if inside and (always or maybe) else []
        leaders.update(ways)
        if address in following:
            leaders.add(following[address])
            if maybe and not always:
                ways.append(following[address])
        jumps[address] = ways
    blocks, block = {}, None
    for address, _, operands in instructions:
        if address in leaders:
            block = blocks[address] = _Block(address)
        after = following.get(address)
        if TRACE in operands and after is not None:
            block.traces.append(after)
        if address in jumps:
            block.successors = [way for way in jumps[address] if way in addresses]
        elif after in leaders:
            block.successors = [after]
    return blocks


def _dominators(order, predecessors):
    """Return for each block the blocks on every way to it; `order` is a reverse post-order."""
    dominators = {start: set(order) for start in order}
    dominators[order[0]] = {order[0]}
    changed = True
    while changed:
        changed = False
        for start in order[1:]:
            known = set.intersection(*(dominators[p] for p in predecessors[start])) | {start}
            if known != dominators[start]:
                dominators[start], changed = known, True
    return dominators


def _reverse_post_order(blocks):
    order, seen = [], set()
    stack = [(next(iter(blocks)), None)]
    while stack:
        start, ways = stack.pop()
        if ways is None:
            if start in seen:
                continue
            seen.add(start)
            ways = iter(blocks[start].successors)
        for way in ways:
            if way not in seen:
                stack += [(start, ways), (way, None)]
                break
        else:
            order.append(start)
    return order[::-1]


def _add_function(found, blocks):
    order = _reverse_post_order(blocks)
    predecessors = {start: [] for start in order}
    for start in order:
        for way in blocks[start].successors:
            predecessors[way].append(start)
    dominators = _dominators(order, predecessors)

    bodies, latches = {}, {}  # by the loop's header: its blocks, and those that lead back to it
    for start in order:
        for header in blocks[start].successors:
            if header in dominators[start]:
                latches.setdefault(header, []).append(start)
                body = bodies.setdefault(header, {header})
                todo = [start]
                while todo:
                    at = todo.pop()
                    if at not in body:
                        body.add(at)
                        todo += predecessors[at]
    headers = sorted(bodies, key=lambda header: -len(bodies[header]))  # the outer before the inner
    number = {header: len(found.parents) + i for i, header in enumerate(headers)}

    def innermost(start, within):
        around = [header for header in within if start in bodies[header]]
        return number[around[-1]] if around else -1

    for i, header in enumerate(headers):
        found.parents.append(innermost(header, headers[:i]))
    begins = set()
    for header in headers:
        # An iteration is seen at the first traced block that each of them passes: the header, or
        # where the compiler left it without a trace, the next.
        always = set.intersection(*(dominators[latch] for latch in latches[header]))
        passed = [s for s in order if s in bodies[header] & always and blocks[s].traces]
        own = [s for s in passed if innermost(s, headers) == number[header]]
        begins.update(own[:1])
    for start in order:
        for i, trace in enumerate(blocks[start].traces):
            found.blocks.append((trace, innermost(start, headers), start in begins and i == 0))
