-- What Headrace knows of the published tables: one JSON array a table, read by cdc.publication. The only such query: the
-- relay runs it, and the event trigger's function (cdc/ddl_trigger.sql) holds it. Parameters are a publication and an array
-- of pg_class.oid, NULL for every table.
with recursive domain(oid, base) as (
  select oid, typbasetype from pg_type where typtype = 'd'
  union all
  select d.oid, t.typbasetype from domain d join pg_type t on t.oid = d.base and t.typtype = 'd'
), below(root, relid) as (
  -- not by pg_partition_tree, which waits for locks of whoever changes a table
  select oid, oid from pg_class where relkind = 'p' and (:oids is null or oid = any(:oids))
  union all
  select below.root, i.inhrelid from below join pg_inherits i on i.inhparent = below.relid
), identity(relid, attnums) as (
  -- int2vector counts from 0; INCLUDE columns come last and are no part of the identity
  select i.indrelid, (i.indkey::int2[])[0:i.indnkeyatts - 1] from pg_index i join pg_class c on c.oid = i.indrelid
  where case c.relreplident when 'd' then i.indisprimary and i.indimmediate when 'i' then i.indisreplident end
    and (:oids is null or i.indrelid = any(:oids))
)
select json_build_array(
  c.oid::bigint, n.nspname, c.relname, c.relreplident::text,
  (select json_agg(json_build_array(
            a.attname, a.atttypid::bigint,
            -- Type messages are sent for types from FirstGenbkiObjectId on; of a domain it is the base type's
            case when a.atttypid >= 10000 then concat(bn.nspname, '.', bt.typname) else '' end,
            a.atttypmod, c.relreplident = 'f' or coalesce(a.attnum = any(identity.attnums), false),
            not a.attnotnull, a.attnum,
            -- what rows hold that are older than the column; those of a partitioned table are its partitions'
            case when c.relkind = 'p' then
              (select case when count(distinct l.attmissingval::text) = 1 then (min(l.attmissingval::text)::text[])[1] end
               from below join pg_attribute l on l.attrelid = below.relid
               where below.root = c.oid and l.attname = a.attname and l.atthasmissing and not l.attisdropped)
            when a.atthasmissing then (a.attmissingval::text::text[])[1] end,
            -- what a value's text depends on beside the type itself: labels of an enum, attributes of a composite
            case e.typtype
              when 'e' then (select json_agg(l.enumlabel order by l.oid) from pg_enum l where l.enumtypid = e.oid)
              when 'c' then (select json_build_array(string_agg(concat_ws(' ', m.attnum, m.atttypid, m.attisdropped), ','
                                                                order by m.attnum))
                             from pg_attribute m where m.attrelid = e.typrelid and m.attnum > 0)
            end) order by a.attnum)
   from pg_attribute a
   left join domain d on d.oid = a.atttypid and not exists (select from domain i where i.oid = d.base)
   join pg_type bt on bt.oid = coalesce(d.base, a.atttypid) join pg_namespace bn on bn.oid = bt.typnamespace
   join pg_type e on e.oid = case when bt.typcategory = 'A' then bt.typelem else bt.oid end
   left join identity on identity.relid = c.oid
   where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attname = any(p.attnames)
     -- PostgreSQL 15 names generated columns here and does not send them
     and (a.attgenerated = '' or current_setting('server_version_num')::int >= 160000)),
  -- SQLite could not use expression, partial and non-btree indexes for the same queries
  (select json_agg(json_build_array(
            ic.relname, i.indisprimary and i.indimmediate, i.indisunique,
            array(select a.attname::text from unnest(i.indkey::int2[]) with ordinality k(attnum, n)
                  join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
                  where k.n <= i.indnkeyatts order by k.n),
            array(select (o.option & 1) = 1 from unnest(i.indoption::int2[]) with ordinality o(option, n)
                  where o.n <= i.indnkeyatts order by o.n)) order by ic.relname)
   from pg_index i join pg_class ic on ic.oid = i.indexrelid join pg_am m on m.oid = ic.relam
   where i.indrelid = c.oid and i.indisvalid and i.indexprs is null and i.indpred is null and m.amname = 'btree'),
  c.relnatts, coalesce(p.rowfilter, ''), c.relkind = 'p', greatest(c.relpages, 0), greatest(c.reltuples, 0)::bigint)
from pg_publication_tables p
join pg_namespace n on n.nspname = p.schemaname
join pg_class c on c.relnamespace = n.oid and c.relname = p.tablename
where p.pubname = :publication and (:oids is null or c.oid = any(:oids))
order by n.nspname, c.relname
