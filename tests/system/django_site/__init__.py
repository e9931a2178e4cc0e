"""A small Django project, run by test_django.py as a process of its own: see __main__.py."""
