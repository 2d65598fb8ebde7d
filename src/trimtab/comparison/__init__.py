"""``trimtab compare``: several methods from one model under one budget, examined alike.

recipe (config/compare_recipe.py) → plan: cells (method, settings, seed), each a whole recipe
→ work: train, examine every kept checkpoint → a file each, named by what it depends on
→ analysis over seeds and prompts → comparison.json, comparison.md, charts, report.html
"""
