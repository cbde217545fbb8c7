"""The plan, written for what runs a fleet: :func:`~flask_workersize.export.render.render`."""
