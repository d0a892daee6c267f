"""How alembic migrates the ledger: in the transaction that ``database.py`` has begun, and with it or not at all."""

from alembic import context
from economizer.ledger.database import VERSION_TABLE
from economizer.ledger.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
)
context.run_migrations()
