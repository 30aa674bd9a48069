-- Nothing reads processing_ms, so this release stops writing it. The column stays, and stays writable, because a process of
-- the previous release may still be serving while this one starts. A later release can drop it.
ALTER TABLE context_entry ALTER COLUMN processing_ms DROP NOT NULL;
