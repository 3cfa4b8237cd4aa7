"""Which licence a text is, in the names that model hubs have for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OTHER = "other"
# A phrase of each that no other has, in lower case with single spaces; the first that is found counts.
PHRASES = {
    "gnu affero general public license version 3": "agpl-3.0",
    "gnu lesser general public license version 3": "lgpl-3.0",
    "gnu general public license version 3": "gpl-3.0",
    "apache license version 2.0": "apache-2.0",
    "creativeml open rail++-m": "openrail++",
    "creativeml open rail-m": "creativeml-openrail-m",
    "attribution-noncommercial-sharealike 4.0": "cc-by-nc-sa-4.0",
    "attribution-noncommercial-noderivatives 4.0": "cc-by-nc-nd-4.0",
    "attribution-noncommercial 4.0": "cc-by-nc-4.0",
    "attribution-sharealike 4.0": "cc-by-sa-4.0",
    "attribution 4.0 international": "cc-by-4.0",
    "cc0 1.0 universal": "cc0-1.0",
    "neither the name of the copyright holder": "bsd-3-clause",
    "permission is hereby granted, free of charge, to any person obtaining a copy": "mit",
}
# Hubs have no name of their own for these.
NAMED = {"stability ai community license": "stabilityai-ai-community", "stability community license": "stabilityai-ai-community"}


@dataclass(frozen=True)
class Licence:
    """What a hub is told.

    Attributes:
        id: one of the hub's own names, or ``other``.
        name: of another licence; empty where nothing is known of it.
        file: where its text is, by its path in the bundle; empty where there is none.
    """

    id: str
    name: str = ""
    file: str = ""


def find_licence(texts: Mapping[str, str]) -> Licence:
    r"""The licence of these texts, by file name; ``other`` where they are several, or none is known.

    Notices and copyright lists beside a licence are none themselves.

    >>> find_licence({"LICENSE": "Apache License\n  Version 2.0, January 2004", "NOTICE": "Made by hand"})
    Licence(id='apache-2.0', name='', file='LICENSE')
    """
    licences = {name: text for name, text in texts.items() if not name.upper().startswith("NOTICE")} or dict(texts)
    recognised = {name: _recognised(text) for name, text in licences.items()}
    file = next(iter(recognised), "")
    if len(set(recognised.values())) != 1:
        return Licence(OTHER, file=file)
    [(id, name)] = set(recognised.values())  # noqa: A001  (the hub's word)
    return Licence(id, name, file)


def _recognised(text: str) -> tuple[str, str]:
    plain = " ".join(text[: 1 << 16].lower().replace(",", " ,").split()).replace(" ,", ",")
    for phrase, licence_id in PHRASES.items():
        if phrase in plain:
            return licence_id, ""
    return OTHER, next((name for phrase, name in NAMED.items() if phrase in plain[:4096]), "")
