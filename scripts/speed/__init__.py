"""Speed: time and memory of bundles, beside other programs.

startup        scripts/bench.py: foveate bench, and the first word with a cold and a warm page cache
first_token    scripts/bench_first_token.py: from the image to the first token, beside llama.cpp
growth         scripts/bench_growth.py: prefill and decode against the number of rows
pruners        scripts/bench_pruners.py: every pruner by itself
contenders     scripts/bench_rivals.py: the language model beside llama.cpp and OpenVINO
rival_models   random models of LLaVA's form for these programs
arguments      options that contenders and first_token share
tables         cells of the printed tables
"""
