"""A transaction-pooling proxy for PostgreSQL that no forgotten transaction can starve."""

from typing import Final

__version__: Final = "0.1.0"
