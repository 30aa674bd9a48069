-- What a search finds: words, stemmed in English and Russian; paths, identifiers, versions and addresses, whole and in parts;
-- and any two neighbouring characters of the scripts that are written without spaces. No extension is needed. The functions
-- that index an entry call nothing but Postgres's own: pg_restore runs them without a search_path.

-- English stems for words of ASCII letters, and Russian ones for the others. Those leave words of other scripts as they are.
CREATE TEXT SEARCH CONFIGURATION handoff (COPY = pg_catalog.russian);

-- The three texts to index, of the first 100,000 characters, or NULL where there is nothing:
-- 1. the text without accents and vowel points, in composed form and lower case, with signs as spaces. Postgres's parser takes
--    a path, a host or a version for one word, so here it sees their parts; the positions of the parts hold them together.
-- 2. the parts of words such as getUserName or v1.2.3, which are also searched for as UserName and as 1.2.3
-- 3. every two neighbouring characters of Chinese, Japanese, Korean, Thai, Lao, Burmese and Khmer text
CREATE FUNCTION search_texts(content text) RETURNS text[] LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    seen text := content;
    parts text;
    pairs text;
BEGIN
    IF octet_length(seen) > 100000 THEN
        seen := left(seen, 100000);
    END IF;
    IF octet_length(seen) <> char_length(seen) THEN
        -- The breve of the Cyrillic short i is no accent: without it Russian endings would not be recognised.
        seen := normalize(regexp_replace(normalize(seen, NFKD),
            '(?<![\u0418\u0438])\u0306|[\u00ad\u0300-\u0305\u0307-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]'
            '|[\u0640\u064b-\u065f\u0670\u200b-\u200f\u2060\ufe00-\ufe0f\ufeff]', '', 'g'), NFKC);
        seen := left(regexp_replace(seen,
            '[\u0080-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u00d7\u00f7\u037e\u0387\u055a-\u055f\u0589\u058a\u05be\u05c0'
            '\u05c3\u05f3\u05f4\u060c\u061b\u061f\u066a-\u066d\u06d4\u0964\u0965\u0970\u0e2f\u0e3f\u0e4f\u0e5a\u0e5b\u104a-\u104f'
            '\u17d4-\u17d6\u2000-\u2bff\u2e00-\u2e7f\u3000-\u3004\u3008-\u3020\u3030\u303d\u30a0\u30fb\ufd3e\ufd3f\ufe10-\ufe6f'
            '\U0001f000-\U0001faff]', ' ', 'g'), 100000);
        IF seen ~ '[\u0e01-\u0e2e\u0e30-\u0e3a\u0e40-\u0e4e\u0e80-\u0eff\u1000-\u1049\u1050-\u109f\u1780-\u17d3\u17d7-\u17df\u3005\u3007\u3041-\u3096\u3099-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff]' THEN
            SELECT string_agg(a || b, ' ') INTO pairs
              FROM regexp_matches(seen, '[\u0e01-\u0e2e\u0e30-\u0e3a\u0e40-\u0e4e\u0e80-\u0eff\u1000-\u1049\u1050-\u109f\u1780-\u17d3\u17d7-\u17df\u3005\u3007\u3041-\u3096\u3099-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff]{2,}', 'g') AS run,
                   unnest(string_to_array(run[1], NULL), (string_to_array(run[1], NULL))[2:]) AS pair (a, b)
             WHERE b IS NOT NULL;
            seen := regexp_replace(seen, '[\u0e01-\u0e2e\u0e30-\u0e3a\u0e40-\u0e4e\u0e80-\u0eff\u1000-\u1049\u1050-\u109f\u1780-\u17d3\u17d7-\u17df\u3005\u3007\u3041-\u3096\u3099-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff]+', ' ', 'g');
        END IF;
    END IF;
    IF seen ~ '[a-z][A-Z]|[A-Z][A-Z][a-z]|(^|[^a-zA-Z0-9])[vV][0-9]' THEN
        SELECT string_agg(run[1], ' ') INTO parts
          FROM regexp_matches(seen, '\S*(?:[a-z][A-Z]|[A-Z][A-Z][a-z]|(?<![a-zA-Z0-9])[vV][0-9])\S*', 'g') AS run;
        parts := regexp_replace(parts, '([a-z0-9])([A-Z])', '\1 \2', 'g');
        parts := regexp_replace(parts, '([A-Z])([A-Z][a-z])', '\1 \2', 'g');
        parts := regexp_replace(parts, '(?<![a-zA-Z0-9])([vV])([0-9])', '\1 \2', 'g');
        parts := replace(replace(replace(replace(replace(replace(replace(casefold(parts COLLATE pg_catalog.pg_unicode_fast), '/', ' '), '.', ' '), '-', ' '), '<', ' '), '+', ' '), '&', ' '), '~', ' ');
    END IF;
    seen := replace(replace(replace(replace(replace(replace(replace(casefold(seen COLLATE pg_catalog.pg_unicode_fast), '/', ' '), '.', ' '), '-', ' '), '<', ' '), '+', ' '), '&', ' '), '~', ' ');
    RETURN ARRAY[seen, parts, pairs];
END
$$;

-- The search vector of these texts; at most 200,000 characters, so that it stays below Postgres's limit of a megabyte. Postgres
-- keeps 255 positions per word, up to the 16,383rd. If there are more, a mark says that positions are missing; no text
-- contains it, as it begins with U+0001.
CREATE FUNCTION search_vector(words regconfig, texts text[]) RETURNS tsvector LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    seen text := array_to_string(texts, ' ');
    vector tsvector;
BEGIN
    IF octet_length(seen) <= 4096 THEN
        RETURN to_tsvector(words, seen);
    END IF;
    vector := to_tsvector(words, left(seen, 200000));
    IF EXISTS (SELECT FROM unnest(vector) WHERE cardinality(positions) >= 255 OR positions[cardinality(positions)] >= 16383) THEN
        vector := vector || array_to_tsvector(ARRAY[chr(1) || 'cut']);
    END IF;
    RETURN vector;
END
$$;

-- What one term of a query looks for; without any node if there is nothing that an index could hold. `is_word` says that no
-- spaces are in it. Where positions are missing, the words of a phrase may be anywhere. A hash is found by its beginning.
CREATE FUNCTION search_term(term text, is_word boolean) RETURNS tsquery LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE AS $$
DECLARE
    texts text[] := search_texts(term);
    found tsquery := phraseto_tsquery('handoff', texts[1]);
    pair text;
BEGIN
    IF is_word AND term ~ '^(?=.*[0-9])(?=.*[a-f])[0-9a-f]{7,64}$' THEN
        found := to_tsquery('handoff', term || ':*');
    ELSIF numnode(found) > 1 THEN
        found := found || (plainto_tsquery('handoff', texts[1]) && array_to_tsvector(ARRAY[chr(1) || 'cut'])::text::tsquery);
    END IF;
    IF is_word AND texts[2] IS NOT NULL THEN
        found := found || phraseto_tsquery('handoff', texts[2])
              || (plainto_tsquery('handoff', texts[2]) && array_to_tsvector(ARRAY[chr(1) || 'cut'])::text::tsquery);
    END IF;
    FOREACH pair IN ARRAY coalesce(string_to_array(texts[3], ' '), '{}') LOOP
        found := found && phraseto_tsquery('handoff', pair);
    END LOOP;
    RETURN found;
END
$$;

ALTER TABLE context_entry ALTER COLUMN search SET EXPRESSION AS (
    search_vector('handoff', search_texts(content))
    || array_to_tsvector(ARRAY[chr(1) || session_id::text || ':' || (sequence / 1024)::text])
);
