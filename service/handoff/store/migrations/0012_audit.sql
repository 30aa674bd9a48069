-- What administrators did. Rows can only be appended, and each row's hash covers the hash of the row before: see store/audit.py.
CREATE TABLE audit (
    id      bigint PRIMARY KEY CHECK (id >= 1), -- without gaps: a row that is missing shows
    at      timestamptz NOT NULL,
    actor   text NOT NULL CHECK (char_length(actor) BETWEEN 1 AND 100),
    action  text NOT NULL CHECK (action ~ '^[a-z_]{1,50}\.[a-z_]{1,50}$'),
    target  text NOT NULL CHECK (char_length(target) <= 400),
    details jsonb NOT NULL CHECK (jsonb_typeof(details) = 'object' AND octet_length(details::text) <= 1000000),
    hash    bytea NOT NULL CHECK (length(hash) = 32)
);

-- The hash of a row that follows the row with the hash `previous`; for the first row, `previous` is 32 bytes of zero.
CREATE FUNCTION audit_hash(previous bytea, id bigint, at timestamptz, actor text, action text, target text, details jsonb)
RETURNS bytea LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT sha256(previous || convert_to(
        jsonb_build_array(id, (extract(epoch FROM at) * 1000000)::bigint, actor, action, target, details)::text, 'UTF8'))
$$;

-- The lock is held until the end of the transaction, so that the next row is computed from a committed one.
CREATE FUNCTION audit_chain() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    last record;
BEGIN
    PERFORM pg_advisory_xact_lock(1635083369); -- "audi" in ASCII
    SELECT id, hash INTO last FROM audit ORDER BY id DESC LIMIT 1;
    NEW.id := coalesce(last.id, 0) + 1;
    NEW.hash := audit_hash(coalesce(last.hash, decode(repeat('00', 32), 'hex')),
                           NEW.id, NEW.at, NEW.actor, NEW.action, NEW.target, NEW.details);
    RETURN NEW;
END
$$;
CREATE TRIGGER audit_chain BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION audit_chain();

CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'The audit table is append-only: % is refused.', TG_OP USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();
REVOKE UPDATE, DELETE, TRUNCATE ON audit FROM PUBLIC, CURRENT_USER;

-- How far the chain has been checked. `head_id` and `head_hash` are the newest row ever found intact: if that row is gone, rows
-- were cut off the end. Rows up to `accepted_id` are not checked: an operator has examined them and accepts a break there.
CREATE TABLE audit_check (
    single      boolean PRIMARY KEY DEFAULT true CHECK (single),
    checked_id  bigint NOT NULL DEFAULT 0,
    head_id     bigint NOT NULL DEFAULT 0,
    head_hash   bytea,
    accepted_id bigint NOT NULL DEFAULT 0
);
INSERT INTO audit_check DEFAULT VALUES;

CREATE VIEW reporting.audit AS SELECT id, at, actor, action, target, details FROM audit;
