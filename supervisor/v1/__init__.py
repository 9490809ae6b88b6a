"""Generated from proto/supervisor/v1 by proto/generate.py; do not edit."""
