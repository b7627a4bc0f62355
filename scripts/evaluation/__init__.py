"""Accuracy: what pruning and precision cost in right answers.

compare               scripts/accuracy.py: every method at every budget on held-out scenes
bundles, scenes, store   bundles of the variants; questions and answers; answers that survive a stopped run
report, plots, page   tables, plots, and docs/accuracy.md
precision             scripts/accuracy_precision.py and docs/precision.md
claims                scripts/claims.py: the parts of methods, switched off one by one
arguments             options that these commands share
contact_sheet         scripts/contact_sheet.py: one image, every method side by side
benchmarks            POPE, GQA and others from local files
lmms_eval_model       scripts/lmms_eval_foveate.py: a bundle as a model of lmms-eval
"""
