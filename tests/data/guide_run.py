from os import environ
from guide_app import lms_app, init_app
from flask_workersize import get_worker_config_from_env

if init_app():
    from gunicorn.app.base import BaseApplication
    
    class StandaloneApplication(BaseApplication):
        def __init__(self, app, options=None):
            self.options = options or {}
            self.application = app
            super().__init__()
        
        def load_config(self):
            for key, value in self.options.items():
                if key in self.cfg.settings and value is not None:
                    self.cfg.set(key.lower(), value)
        
        def load(self):
            return self.application
    
    # Get optimal configuration
    workers, threads = get_worker_config_from_env()
    
    options = {
        "bind": environ["GUIDE_BIND"],
        "workers": workers,
        "threads": threads,
        "worker_class": "gthread" if threads > 1 else "sync",
        "timeout": 120,
        "accesslog": "-",
        "errorlog": "-",
    }
    
    print(f"Starting with {workers} workers and {threads} threads")
    StandaloneApplication(lms_app, options).run()
