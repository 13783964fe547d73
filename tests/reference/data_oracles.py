"""Slow, obvious versions of the data engine's parts, in plain Python integers and lists."""

import hashlib
from fractions import Fraction

import numpy as np


def draw_words(count, *key):
    digest = hashlib.sha256(repr(key).encode()).digest()
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    return [int(word) for word in generator.random_raw(count)]


def permuted(position, size, *key):
    bits = max(3, (size - 1).bit_length())
    drawn = draw_words(24, *key)
    x = position
    while True:
        for factor, constant in zip(drawn[:12], drawn[12:], strict=True):
            x = (x * (factor | 1) + constant) % 2**bits
            x ^= x >> ((bits + 1) // 2)
        if x < size:
            return x


def documents_in_order(samples, epoch, block_documents, key):
    """[(shard, sample)] of one epoch of all shards."""
    shards = list(range(len(samples)))
    draws = draw_words(len(samples), *key, epoch)
    shards.sort(key=lambda shard: draws[shard])
    blocks, start, last = [], 0, None
    for shard in shards:
        number = start // block_documents
        if number != last:
            blocks.append([])
        blocks[-1] += [(shard, sample) for sample in range(samples[shard])]
        last, start = number, start + samples[shard]
    order = []
    for number, block in enumerate(blocks):
        places = [permuted(n, len(block), *key, epoch, number) for n in range(len(block))]
        order += [block[place] for place in places]
    return order


def pack(lengths, row_tokens, waiting_pieces):
    """Rows of document numbers, from a finite list of lengths; stops when it needs more."""
    waiting, rows, arrived = [], [], 0
    while True:
        while len(waiting) < waiting_pieces or sum(lengths[n] for n in waiting) < 1.25 * row_tokens:
            if arrived == len(lengths):
                return rows
            waiting.append(arrived)
            arrived += 1
        row, room = [], row_tokens
        while waiting and lengths[waiting[0]] <= room:
            row.append(waiting.pop(0))
            room -= lengths[row[-1]]
        oldest = len(row)
        while fitting := [n for n in waiting if lengths[n] <= room]:
            best = max(fitting, key=lambda n: (lengths[n], -n))
            waiting.remove(best)
            row.append(best)
            room -= lengths[best]
        exchanges = []
        for place in range(1, oldest):
            for n in waiting:
                gain = lengths[n] - lengths[row[place]]
                if 0 < gain <= room:
                    exchanges.append((gain, place, -n))
        if exchanges:
            _, place, n = max(exchanges)
            waiting.append(row[place])
            row[place] = -n
            waiting.remove(-n)
            waiting.sort()
        rows.append(row)


def mask(ids, *, mask_id, special, size, rate, key, word_starts=None, spans=False):
    """(ids seen, positions, labels), token by token."""
    count = 0

    def sixteen_bits(numbers):
        nonlocal count
        words = draw_words(count + -(-numbers // 4), *key)[count:]
        count += len(words)
        return [word >> shift & 0xFFFF for word in words for shift in (0, 16, 32, 48)][:numbers]

    fates = sixteen_bits(len(ids))
    threshold = round(rate * 65536)
    if word_starts is None and not spans:
        chosen = [fates[n] < threshold for n in range(len(ids))]
    else:
        words, length = [], 0  # (where it begins, whether it stands alone)
        for n, token in enumerate(ids):
            alone = n == 0 or token in special or ids[n - 1] in special
            begins = word_starts is None or word_starts[token] or length == 8
            if alone or begins:
                words.append((n, alone))
                length = 0
            length += 1
        starts = {n for n, _ in words}
        if spans:
            begin, ends = 0, set()
            while begin < len(words):
                for draw in sixteen_bits((len(words) - begin) // 3 + 16):
                    begin += span_length(draw)
                    ends.add(begin)
            starts = {n for number, (n, alone) in enumerate(words) if alone or number in ends}
        group, chosen = -1, []
        for n in range(len(ids)):
            group += n in starts
            chosen.append(fates[group] < threshold)
    positions = [n for n, token in enumerate(ids) if chosen[n] and token not in special]
    if word_starts is None and not spans:
        scale, own = threshold, [fates[n] for n in positions]
    else:
        scale, own = 65536, sixteen_bits(len(positions))
    masked_below, replaced_below = round(0.8 * scale), round(0.9 * scale)
    ordinary = [token for token in range(size) if token not in special]
    seen, replacements = list(ids), 0
    for position, fate in zip(positions, own, strict=False):
        if fate < masked_below:
            seen[position] = mask_id
        elif fate < replaced_below:
            draw = draw_words(count + replacements + 1, *key)[-1] >> 32
            seen[position] = ordinary[draw * len(ordinary) >> 32]
            replacements += 1
    return seen, positions, [ids[n] for n in positions]


def span_length(draw):
    """Of 65,536 draws, how long a span: geometric with p = 0.2, given that it is at most 10."""
    for length in range(1, 10):
        at_most = Fraction(1 - Fraction(4, 5) ** length, 1 - Fraction(4, 5) ** 10)
        if draw < round(at_most * 65536):
            return length
    return 10
