-- What each table takes on disk, with its indexes, as a job measures it once an hour. The archive counts as one table.
CREATE TABLE storage_size (
    name        text NOT NULL,
    measured_at timestamptz NOT NULL,
    bytes       bigint NOT NULL CHECK (bytes >= 0),
    PRIMARY KEY (measured_at, name)
);
CREATE VIEW reporting.storage_size AS SELECT name, measured_at, bytes FROM storage_size;
