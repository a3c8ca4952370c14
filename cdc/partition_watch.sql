-- Partitions that come or go with their rows, or are truncated: of a table that is published through its root Postgres sends
-- nothing of that (cases.md T25). So it is remembered which partitions there are; a table whose partitions are not those
-- any more, or of which one was truncated, is to be read again (cdc.refill, headrace.resync). Installed with ddl_trigger.sql.
--
-- Unlogged, so that no publication of all tables takes it; emptied by a crash, when the next change has the table read.
create unlogged table headrace.partition (leaf oid primary key, root oid not null);
create index on headrace.partition (root);

create function headrace.read_again(root oid) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $again$
declare
  told text := 'headrace.read_again_' || root;
begin
  -- once a transaction: TRUNCATE of the root truncates every partition
  if current_setting(told, true) is distinct from pg_current_xact_id()::text then
    perform set_config(told, pg_current_xact_id()::text, true);
    perform pg_logical_emit_message(true, 'headrace.resync', json_build_object('oid', root::bigint, 'replace', true)::text);
  end if;
end
$again$;

create function headrace.note_truncate() returns trigger language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $truncate$
begin
  if pg_partition_root(tg_relid) is not null then
    perform headrace.read_again(pg_partition_root(tg_relid));
  end if;
  return null;
end
$truncate$;

-- Remembers the partitions of a root as they are; answers whether rows may have come or gone. `created` are new and empty.
create function headrace.watch(of_root oid, created oid[]) returns boolean language plpgsql
set search_path = pg_catalog, pg_temp
as $watch$
declare
  present oid[] := array(select t.relid from pg_partition_tree(of_root) t join pg_class c on c.oid = t.relid
                         where t.isleaf and c.relkind = 'r');
  known oid[] := array(select p.leaf from headrace.partition p where p.root = of_root);
  one oid;
begin
  delete from headrace.partition p where p.root = of_root and p.leaf <> all(present);
  foreach one in array array(select p from unnest(present) p where p <> all(known)) loop
    insert into headrace.partition values (one, of_root) on conflict (leaf) do update set root = excluded.root;
    if not exists (select from pg_trigger where tgrelid = one and tgname = 'headrace_truncate') then
      begin
        execute format('create trigger headrace_truncate after truncate on %s for each statement'
                       ' execute function headrace.note_truncate()', one::regclass);
        execute format('alter table %s enable always trigger headrace_truncate', one::regclass);
      exception when insufficient_privilege then  -- a provider's stand-in for a superuser, and somebody else's table
        raise warning 'Headrace will not hear of a truncate of % alone: %', one::regclass, sqlerrm;
      end;
    end if;
  end loop;
  return exists (select from unnest(known) k where k <> all(present))
      or exists (select from unnest(present) p where p <> all(known || created));
end
$watch$;

create function headrace.note_partitions() returns event_trigger language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $note$
declare
  roots oid[];
  created oid[] := '{}';
  one oid;
begin
  if tg_event = 'sql_drop' then
    with dropped as (
      delete from headrace.partition p using pg_event_trigger_dropped_objects() d
      where d.object_type = 'table' and d.objid = p.leaf returning p.root
    ) select array_agg(distinct d.root) into roots from dropped d join pg_class c on c.oid = d.root;
    foreach one in array coalesce(roots, '{}') loop
      perform headrace.read_again(one);
    end loop;
    return;
  end if;
  select array_agg(distinct pg_partition_root(o.oid)::oid) filter (where pg_partition_root(o.oid) is not null),
         coalesce(array_agg(o.oid) filter (where c.command_tag = 'CREATE TABLE'), '{}')
  into roots, created
  from pg_event_trigger_ddl_commands() c
  left join pg_publication_rel r on c.classid = 'pg_publication_rel'::regclass and r.oid = c.objid
  join pg_class o on o.oid = coalesce(r.prrelid, case when c.classid = 'pg_class'::regclass then c.objid end)
  where o.relkind in ('r', 'p');
  foreach one in array coalesce(roots, '{}') loop
    if exists (
      select from headrace.publication n join pg_publication_tables p on p.pubname = n.name
      join pg_class c on c.relname = p.tablename and c.relnamespace = to_regnamespace(quote_ident(p.schemaname))
      where c.oid = one
    ) and headrace.watch(one, created) then
      perform headrace.read_again(one);
    end if;
  end loop;
exception when others then
  raise warning 'Headrace could not tell of the partitions: %', sqlerrm;
end
$note$;

create function headrace.note_publication() returns trigger language plpgsql
set search_path = pg_catalog, pg_temp
as $publication$
begin
  perform headrace.watch(c.oid, '{}') from pg_publication_tables p
  join pg_class c on c.relname = p.tablename and c.relnamespace = to_regnamespace(quote_ident(p.schemaname))
  where p.pubname = new.name and c.relkind = 'p';
  return null;
end
$publication$;

create trigger headrace_publication after insert on headrace.publication for each row
execute function headrace.note_publication();

revoke all on function headrace.read_again(oid), headrace.note_truncate(), headrace.watch(oid, oid[]),
  headrace.note_partitions(), headrace.note_publication() from public;

create event trigger headrace_partitions on ddl_command_end execute function headrace.note_partitions();
create event trigger headrace_partition_gone on sql_drop execute function headrace.note_partitions();
alter event trigger headrace_partitions enable always;
alter event trigger headrace_partition_gone enable always;
