"""Demonstrations: claims of the lecture, measured on a study's data and said with their evidence, or honestly denied.

A study file names one, ``[study] shows = "random_labels"``, and ``tuner run`` computes it when the search is over;
``tuner demonstrate NAME random_labels`` computes it for any study. Either prints the sentence, stores the result with
the study (so ``tuner report`` has the figure), and writes ``figures/NAME.html`` and ``figures/NAME.json``.

One module a demonstration, named as in :data:`tuner.spec.Shown`, is an :class:`Exhibit`:

- ``TITLE`` and ``SLIDE``: of the figure, and of the lecture's slide whose claim it is.
- ``measure(lab) -> data``: trains what it needs and returns plain JSON. A :class:`Lab` holds the study: its spec, its
  winner, its train and validation rows, the truth where there is one. Networks are lanes of packs
  (:func:`tuner.theory.runs.train`), training sets that differ are folds of one data set
  (:func:`tuner.theory.runs.resampled`). What is held out is the validation rows, or fresh rows of a synthetic source;
  the test set stays sealed.
- ``claim(data) -> Claim``: a function of those data alone, so that a test can assert it, and falsify it with others.
- ``draw(data) -> Figure``: likewise.

To add one: its name in ``Shown``, its module here, a study in ``studies/lecture/``, a test of its claim.
"""

from tuner.demonstrations.demonstration import Claim, Demonstration, Exhibit, demonstrate, exhibit
from tuner.demonstrations.lab import Lab

__all__ = ["Claim", "Demonstration", "Exhibit", "Lab", "demonstrate", "exhibit"]
