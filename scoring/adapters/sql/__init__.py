"""The stores in SQL: schema, migrations, and one module for each port."""
