# SPDX-License-Identifier: MIT
"""What there is of the image sets, what is missing, and how to get it (``make data-check``)."""

from convstudy.images import carvana, manifest


def report():
    """Return whether the committed set is whole, and a text on both sets.

    Carvana may not be redistributed, so that it is said to be missing, but nothing fails for it.

    Returns
    -------
    whole : bool
    text : str
    """
    faults = manifest.problems()
    if faults:
        committed = [
            "composites: the committed set is not whole; `git checkout -- data/images` restores it",
            *(f"  {fault}" for fault in faults),
        ]
    else:
        counts = {kind: len(manifest.rows(kind)) for kind in manifest.KINDS}
        committed = [
            f"composites: whole: {counts['object']} cut-outs, {counts['background']} backgrounds,"
            f" {counts['composite']} ready-made with masks; licences in data/images/README.md"
        ]
    return not faults, "\n".join([*committed, _carvana()])


def _carvana():
    try:
        pairs = carvana.CarvanaSet()
        image, _ = pairs[0]
    except (FileNotFoundError, ValueError) as error:
        return f"Carvana: not to be used yet; nothing in the study needs it\n  {error}"
    return f"Carvana: {len(pairs)} images with masks; at the scale 0.1 they are {image.shape[1:]}"
