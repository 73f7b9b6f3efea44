"""Where stop strings end a text: the plainest reference."""


def first_stop(pieces: list[tuple[str, bool]], stops: list[str]) -> tuple[str, bool]:
    """The plainest reference for (text, shown) pieces: (what is shown before the first stop string, whether there is one).
    Grows both texts character by character."""
    every: list[tuple[str, bool]] = []
    for text, shown in pieces:
        for character in text:
            every.append((character, shown))
            starts = []
            for view in (every, [one for one in every if one[1]]) if shown else (every,):
                end = "".join(character for character, _ in view)
                starts += [view[: len(view) - len(stop)] for stop in stops if end.endswith(stop)]
            if starts:
                return min(("".join(c for c, shown in start if shown) for start in starts), key=len), True
    return "".join(character for character, shown in every if shown), False
