-- The optional event trigger: every DDL command puts the facts of the tables that it touched into the WAL, in its own
-- transaction, for cdc.catalog to read. Installed by cdc.ddl_trigger, which fills in the query of tables.sql.
--
-- It never fails the command that it watches: an error is a warning and a message that says so, and the relay then asks
-- for everything. It runs with its owner's rights, so that whoever may run DDL needs none here.
create schema headrace;
create table headrace.publication (name text primary key);
grant usage on schema headrace to public;
grant select on headrace.publication to public;

create function headrace.tables(publication text, oids oid[]) returns json language sql stable
set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' set timezone = 'UTC' set intervalstyle = 'postgres' set extra_float_digits = 3
set bytea_output = 'hex' set xmloption = 'content'
as $tables$ select coalesce(json_agg(t.r), '[]') from ({tables}) t(r) $tables$;

-- Decoding takes the end of a message's record for its place, where it takes the start of a row's. What is written next may
-- so tie with it, and win when the two are of different subtransactions, as with the exception block below. So another
-- message follows, which may lose.
create function headrace.emit(message json) returns void language sql
set search_path = pg_catalog, pg_temp
as $emit$
  select pg_logical_emit_message(true, 'headrace.catalog', convert_to(message::text, 'UTF8'));
  select pg_logical_emit_message(true, 'headrace.end', '');
$emit$;

create function headrace.note_ddl() returns event_trigger language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $note$
declare
  touched oid[] := '{{}}';       -- tables whose facts are to be told
  created oid[] := '{{}}';
  additive oid[] := '{{}}';      -- touched by CREATE INDEX, which may run beside another one on the same table
  gone oid[] := '{{}}';
  indexes json := '[]';
  unknown boolean := false;      -- what changed is not under this transaction's locks: the relay is to read it
  for_publication text;
  told json;
  left_out oid[];
begin
  if tg_event = 'table_rewrite' then
    if (select relpersistence <> 't' from pg_class where oid = pg_event_trigger_table_rewrite_oid()) then
      -- of a partition, it is the root's rows that were
      perform headrace.emit(json_build_object('rewritten', (
        select json_agg(json_build_array(t.oid::bigint, pg_event_trigger_table_rewrite_reason()))
        from (select pg_event_trigger_table_rewrite_oid() union
              select relid::oid from pg_partition_ancestors(pg_event_trigger_table_rewrite_oid())) t(oid))));
    end if;
    return;
  end if;

  if tg_event = 'sql_drop' then
    select coalesce(array_agg(d.objid) filter (where d.object_type = 'table'), '{{}}'),
           coalesce(array_agg(coalesce(to_regclass(format('%I.%I', d.address_names[1], d.address_names[2]))::oid, 0))
                    filter (where d.object_type = 'publication relation'), '{{}}')
           || coalesce(array_agg(d.objid) filter (where d.object_type = 'table column' and tg_tag <> 'ALTER TABLE'), '{{}}'),
           coalesce(json_agg(json_build_array(d.schema_name, d.object_name))
                    filter (where d.object_type = 'index' and tg_tag not in ('ALTER TABLE', 'DROP TABLE', 'DROP SCHEMA')),
                    '[]'),
           coalesce(bool_or(d.object_type = 'publication namespace'), false)
    into gone, touched, indexes, unknown
    from pg_event_trigger_dropped_objects() d where not d.is_temporary;
  elsif tg_tag <> 'COMMENT' then
    select coalesce(array_agg(t.relation) filter (where t.relation is not null), '{{}}'),
           coalesce(array_agg(t.relation) filter (where c.command_tag in ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO')),
                    '{{}}'),
           coalesce(array_agg(t.relation) filter (where c.command_tag = 'CREATE INDEX'), '{{}}'),
           coalesce(bool_or(
             c.classid in ('pg_publication'::regclass, 'pg_publication_namespace'::regclass)
             or c.classid = 'pg_namespace'::regclass and c.command_tag = 'ALTER SCHEMA'
             or c.classid = 'pg_type'::regclass and c.command_tag in ('ALTER TYPE', 'ALTER DOMAIN')
             or o.relkind = 'c' and c.command_tag = 'ALTER TYPE'
             or o.relkind in ('i', 'I') and c.command_tag = 'ALTER INDEX'), false)
    into touched, created, additive, unknown
    from pg_event_trigger_ddl_commands() c
    left join pg_class o on c.classid = 'pg_class'::regclass and o.oid = c.objid
    left join lateral (
      select case when o.relkind in ('r', 'p') then o.oid when o.relkind in ('i', 'I') then i.indrelid else r.prrelid end
             as relation
      from (select 1) one
      left join pg_index i on i.indexrelid = o.oid
      left join pg_publication_rel r on c.classid = 'pg_publication_rel'::regclass and r.oid = c.objid
    ) t on true
    where o.relpersistence is distinct from 't';
    -- the rows of a partition may be published as its root's
    touched := touched || array(select distinct pg_partition_root(c.oid)::oid from pg_class c
                                where c.oid = any(touched) and c.relispartition);
  end if;

  for for_publication in select p.name from headrace.publication p join pg_publication b on b.pubname = p.name loop
    told := headrace.tables(for_publication, touched);
    left_out := gone || array(select t from unnest(touched) t where t <> all(created) and t <> 0
                              and not exists (select from json_array_elements(told) f where (f ->> 0)::oid = t));
    if unknown or json_array_length(told) > 0 or cardinality(left_out) > 0 or json_array_length(indexes) > 0 then
      perform headrace.emit(json_build_object(
        'publication', for_publication, 'tables', told, 'created', created::bigint[], 'additive', additive::bigint[],
        'gone', left_out::bigint[], 'gone_indexes', indexes, 'unknown', unknown));
    end if;
  end loop;
exception when others then
  raise warning 'Headrace could not tell of this command: %', sqlerrm;
  begin
    perform headrace.emit('{{"unknown": true}}');
  exception when others then
    null;  -- the command comes first; the relay still sees what Relation messages show
  end;
end
$note$;

revoke all on function headrace.tables(text, oid[]), headrace.emit(json), headrace.note_ddl() from public;

create event trigger headrace_ddl on ddl_command_end execute function headrace.note_ddl();
create event trigger headrace_drop on sql_drop execute function headrace.note_ddl();
create event trigger headrace_rewrite on table_rewrite execute function headrace.note_ddl();
alter event trigger headrace_ddl enable always;
alter event trigger headrace_drop enable always;
alter event trigger headrace_rewrite enable always;
