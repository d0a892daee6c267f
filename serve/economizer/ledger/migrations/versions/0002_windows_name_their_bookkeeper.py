"""A window's row names the bookkeeper that split it."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("windows", sa.Column("epoch", sa.String))
