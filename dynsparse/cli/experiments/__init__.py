"""Lists of experiments: which jobs there are, how far they are, and running them one after another.

A list is a YAML file, such as those in configs/experiments/. A job is a command line of dist_train.py in the flags of
the paper's code, with a number, `job-idx`, and a `group`.
"""
