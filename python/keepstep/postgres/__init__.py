"""Everything that speaks SQL, and the PostgreSQL that the server runs itself when it is given none."""
