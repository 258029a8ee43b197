"""Job files: read as YAML, checked into a plan, built into components; and a job to start from.

Nothing is imported here, so that printing the template needs no heavy package.
"""
