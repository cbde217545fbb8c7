"""Run an app under a plan: the only room that knows gunicorn and waitress."""
