"""Reference answers of a bundle: what its graphs answer in torch.

``run`` records a question through all graphs, ``graph`` one of them. ``near_ties`` are the choices of pruners
that rounding may change, ``ranges`` the largest values, which tell whether float16 holds them.
"""
