-- search_texts of migration 0010, with the same result for less. What is indexed stays as it is.
-- 1. Text is decomposed and composed again only if that can change it: not if it is in normal form KC and has none but ASCII,
--    common signs, Russian, Thai, Chinese, Japanese or Korean characters, which no accent can be taken from. The full-width
--    signs of Chinese text and the Russian yo are replaced first, as that would do it.
-- 2. The pairs of a run ABCD are made from its characters with each character as delimiter, too: A, "B "B, "C "C, "D "D is
--    "AB BC CD D", of which the last two characters are cut off.
CREATE OR REPLACE FUNCTION search_texts(content text) RETURNS text[] LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    seen text := content;
    parts text;
    pairs text;
BEGIN
    IF octet_length(seen) > 100000 THEN
        seen := left(seen, 100000);
    END IF;
    IF octet_length(seen) <> char_length(seen) THEN
        seen := replace(replace(replace(replace(replace(replace(replace(replace(replace(seen, E'\u0451', E'\u0435'), E'\u0401', E'\u0415'), E'\uff0c', ','), E'\uff1a', ':'), E'\uff1b', ';'), E'\uff1f', '?'), E'\uff01', '!'), E'\uff08', '('), E'\uff09', ')');
        IF seen IS NOT NFKC NORMALIZED OR seen ~ '[^\u0001-\u007f\u00a7\u00ab\u00b0\u00b1\u00b7\u00bb\u00d7\u0410-\u044f\u0e01-\u0e3a\u0e40-\u0e4e\u2010-\u2027\u2190-\u2193\u2500-\u257f\u3001-\u3003\u3008-\u3011\u3041-\u3096\u30a1-\u30fc\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3]' THEN
            -- The breve of the Cyrillic short i is no accent: without it Russian endings would not be recognised.
            seen := normalize(regexp_replace(normalize(seen, NFKD),
                '(?<![\u0418\u0438])\u0306|[\u00ad\u0300-\u0305\u0307-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]'
                '|[\u0640\u064b-\u065f\u0670\u200b-\u200f\u2060\ufe00-\ufe0f\ufeff]', '', 'g'), NFKC);
        END IF;
        seen := left(regexp_replace(seen,
            '[\u0080-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u00d7\u00f7\u037e\u0387\u055a-\u055f\u0589\u058a\u05be\u05c0'
            '\u05c3\u05f3\u05f4\u060c\u061b\u061f\u066a-\u066d\u06d4\u0964\u0965\u0970\u0e2f\u0e3f\u0e4f\u0e5a\u0e5b\u104a-\u104f'
            '\u17d4-\u17d6\u2000-\u2bff\u2e00-\u2e7f\u3000-\u3004\u3008-\u3020\u3030\u303d\u30a0\u30fb\ufd3e\ufd3f\ufe10-\ufe6f'
            '\U0001f000-\U0001faff]', ' ', 'g'), 100000);
        IF seen ~ '[\u0e01-\u0e2e\u0e30-\u0e3a\u0e40-\u0e4e\u0e80-\u0eff\u1000-\u1049\u1050-\u109f\u1780-\u17d3\u17d7-\u17df\u3005\u3007\u3041-\u3096\u3099-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff]' THEN
            SELECT string_agg((SELECT left(string_agg(c, c || ' '), -2) FROM string_to_table(run[1], NULL) AS c), ' ') INTO pairs
              FROM regexp_matches(seen, '[\u0e01-\u0e2e\u0e30-\u0e3a\u0e40-\u0e4e\u0e80-\u0eff\u1000-\u1049\u1050-\u109f\u1780-\u17d3\u17d7-\u17df\u3005\u3007\u3041-\u3096\u3099-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff]{2,}', 'g') AS run;
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
