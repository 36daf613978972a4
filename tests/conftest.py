from hypothesis import settings

# derandomize: the suite answers the same on every run. No deadline: a busy machine is not a failure.
settings.register_profile("suite", derandomize=True, deadline=None, database=None, max_examples=40)
settings.load_profile("suite")
