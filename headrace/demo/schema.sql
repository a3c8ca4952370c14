create table products (
    tenant_id         text not null,
    id                text not null,
    name              text not null,
    slug              text,
    description       text,
    price             numeric(10, 2) not null,
    compare_at_price  numeric(10, 2),
    category_id       text,
    image_url         text,
    active            boolean not null default true,
    updated_at        timestamptz not null default now(),
    primary key (tenant_id, id)
);
create index idx_products_category on products (category_id);
create index idx_products_active on products (active);
create index idx_products_slug on products (slug);

create table categories (
    tenant_id  text not null,
    id         text not null,
    name       text not null,
    parent_id  text,
    primary key (tenant_id, id)
);

create table site_config (
    tenant_id   text not null,
    key         text not null,
    value       jsonb not null,
    updated_at  timestamptz not null default now(),
    primary key (tenant_id, key)
);

create table role_permissions (
    tenant_id   text not null,
    role_id     text not null,
    permission  text not null,
    primary key (tenant_id, role_id, permission)
);

create table menu_items (
    tenant_id   text not null,
    id          integer not null,
    label       text not null,
    path        text not null,
    sort_order  integer not null,
    active      boolean not null default true,
    primary key (tenant_id, id)
);

create table daily_snapshots (
    tenant_id     text not null,
    date          date not null,
    revenue       numeric(14, 2) not null,
    transactions  integer not null,
    avg_ticket    numeric(12, 2) not null,
    primary key (tenant_id, date)
);

create table feature_flags (
    tenant_id  text not null,
    key        text not null,
    value      jsonb not null,
    primary key (tenant_id, key)
);
