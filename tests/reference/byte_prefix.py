"""Golden values of a teacher's distributions carried over to another vocabulary by the bytes that tokens begin with.

    python tests/reference/byte_prefix.py > distill/tests/golden/byte_prefix.json

Written from the definitions in arXiv 2607.22334, by going through all tokens for each case: a teacher's token counts for the
longest student token that is a prefix of what is left of its bytes; what has none is the residual; a student's token that spans
several of the teacher's takes the product along them off what the first one counts for.
"""

import json
import random

random.seed(7)
# Letters in pieces of either kind; the last of each vocabulary ends a turn.
TEACHER = ["a", "b", "c", "d", "ab", "cd", "abc", "bcd", "dab", "abcd", "aa", "x"] + [None]
STUDENT = ["a", "b", "c", "d", "bc", "da", "abcda", "cda", "ca", "aab"] + [None]
ENDS = [len(TEACHER) - 1, len(STUDENT) - 1]


def cut(text, vocabulary):
    """Any cut, longest or not."""
    ids = []
    while text:
        fits = [i for i, t in enumerate(vocabulary) if t and text.startswith(t)]
        i = random.choice(fits)
        ids.append(i)
        text = text[len(vocabulary[i]) :]
    return ids


def begins(text):
    fits = [i for i, t in enumerate(STUDENT) if t and text.startswith(t)]
    return max(fits, key=lambda i: len(STUDENT[i]), default=None)


def carry(teacher, probs, offset, nxt):
    """At `offset` letters of the answer, before the student's token `nxt`."""
    starts = [0]
    for t in teacher[:-1]:
        starts.append(starts[-1] + len(TEACHER[t]))
    at = max(i for i, s in enumerate(starts) if s <= offset)
    read = offset - starts[at]
    p = probs[at]
    out, rest = [0.0] * len(STUDENT), 0.0
    own, source = 0.0, None
    if read == 0:
        allowed = {i: p[i] for i in range(len(TEACHER))}
    else:
        prefix = TEACHER[teacher[at]][:read]
        allowed = {i: p[i] for i, t in enumerate(TEACHER) if t and t.startswith(prefix) and len(t) > read}
        total = sum(allowed.values())
        allowed = {i: x / total for i, x in allowed.items()}
    for i, x in allowed.items():
        to = ENDS[1] if i == ENDS[0] else begins(TEACHER[i][read:])
        if to is None:
            rest += x
        else:
            out[to] += x
        if i == teacher[at]:
            own, source = x, to
    if nxt == ENDS[1]:
        return out, rest
    wanted = STUDENT[nxt]
    done = len(TEACHER[teacher[at]]) - read
    if len(wanted) > done:
        chain, j = own, at + 1
        while done + len(TEACHER[teacher[j]]) < len(wanted):
            chain *= probs[j][teacher[j]]
            done += len(TEACHER[teacher[j]])
            j += 1
        left = wanted[done:]
        chain *= sum(x for x, t in zip(probs[j], TEACHER) if t and t.startswith(left))
        have = rest if source is None else out[source]
        chain = min(chain, have)
        if source is None:
            rest -= chain
        else:
            out[source] -= chain
        out[nxt] += chain
    return out, rest


cases = []
for _ in range(30):
    text = "".join(random.choice(["abcd", "a", "bcd", "c", "dab"]) for _ in range(4))
    teacher = cut(text, TEACHER) + [ENDS[0]]
    student = cut(text, STUDENT) + [ENDS[1]]
    probs = []
    for t in teacher:
        row = [random.random() ** 3 for _ in TEACHER]
        row[t] += 1.5
        probs.append([x / sum(row) for x in row])
    carried, rests, offset = [], [], 0
    for s in student:
        out, rest = carry(teacher, probs, offset, s)
        carried.append(out)
        rests.append(rest)
        offset += len(STUDENT[s] or "")
    cases.append(
        {"teacher_answer": teacher, "student_answer": student, "probs": probs, "carried": carried, "rest": rests}
    )
print(json.dumps({"teacher": TEACHER, "student": STUDENT, "ends": ENDS, "cases": cases}))
