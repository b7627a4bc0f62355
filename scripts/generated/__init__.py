"""Pages and data files that are written from the code and from measurements.

generate       scripts/generate.py: all that follow from the code, with tables of README and the schema
api_page       docs/api.md
plan_methods   jetson/data/methods.json
plan_models    jetson/data/models.json
fit_plan       scripts/fit_plan.py: jetson/data/efficiency.json, fitted to published measurements
"""
