"""Job files: YAML (`reader`), checked (`plan`), built (`build`), and one to start from (`template`).

Nothing is imported here, so that printing the template needs no heavy package.
"""
