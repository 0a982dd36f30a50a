"""The web page: a job manager that outlives it, and the page itself. Nothing else of dreamsa imports this."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
