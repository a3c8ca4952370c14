-- The rows of tenants %(first)s to %(last)s.

create temporary table new_tenants on commit drop as
select 'tenant-' || lpad(n::text, greatest(3, length(n::text)), '0') as tenant_id, n from generate_series(%(first)s, %(last)s) n;

insert into categories
select tenant_id, slug, name, parent from new_tenants, (values
    ('kitchen', 'Kitchen', null), ('table', 'Tableware', 'kitchen'), ('cook', 'Cookware', 'kitchen'),
    ('home', 'Home', null), ('light', 'Lighting', 'home'), ('textile', 'Textiles', 'home'),
    ('office', 'Office', null), ('garden', 'Garden', null)
) c (slug, name, parent);

insert into products
select tenant_id, left(md5(tenant_id || '/' || p), 12), name,
       lower(replace(name, ' ', '-')) || '-' || p, name || ', made to order and shipped within two days.',
       price, case when p %% 4 = 0 then round(price * 1.2, 2) end,
       (array['table', 'cook', 'light', 'textile', 'office', 'garden'])[1 + p %% 6],
       'https://img.example.com/' || left(md5(tenant_id || '/' || p), 12) || '.webp', p %% 8 <> 0,
       now() - make_interval(hours => p)
from (
    select tenant_id, p,
           (array['Oak', 'Walnut', 'Linen', 'Copper', 'Slate', 'Amber', 'Cedar', 'Ivory', 'Cobalt', 'Moss'])
               [1 + (n * 7 + p * 3) %% 10] || ' ' ||
           (array['Bowl', 'Lamp', 'Tray', 'Vase', 'Chair', 'Throw', 'Kettle', 'Planter', 'Desk', 'Jug', 'Stool'])
               [1 + (n + p) %% 11] as name,
           round((9 + (n * 131 + p * 977) %% 24000 / 100.0)::numeric, 2) as price
    from new_tenants, generate_series(1, 120) p
) made;

insert into site_config
select tenant_id, key, value::jsonb from new_tenants, (values
    ('theme', '{"mode": "light", "accent": "#2f6f4e", "radius": 6}'),
    ('locale', '{"language": "en", "currency": "EUR", "timezone": "Europe/Lisbon"}'),
    ('checkout', '{"guest": true, "express": ["card", "wallet"]}'),
    ('shipping', '{"free_above": 60, "carriers": ["post", "courier"]}'),
    ('contact', '{"email": "hello@example.com", "phone": null}')
) c (key, value);

insert into role_permissions
select tenant_id, role, permission from new_tenants, (values
    ('admin', array['products.read', 'products.write', 'orders.read', 'orders.refund', 'staff.invite', 'billing.read']),
    ('editor', array['products.read', 'products.write', 'menu.write']),
    ('viewer', array['products.read', 'orders.read'])
) r (role, permissions), unnest(permissions) permission;

insert into menu_items
select tenant_id, id, label, '/admin/' || lower(label), id * 10 from new_tenants, (values
    (1, 'Dashboard'), (2, 'Products'), (3, 'Orders'), (4, 'Customers'),
    (5, 'Discounts'), (6, 'Reports'), (7, 'Staff'), (8, 'Settings')
) m (id, label);

insert into daily_snapshots
select tenant_id, day, sales * ticket, sales, ticket
from (
    select tenant_id, current_date - d as day, 20 + (n * 17 + d * 29) %% 80 as sales,
           round((15 + (n * 37 + d * 53) %% 6000 / 100.0)::numeric, 2) as ticket
    from new_tenants, generate_series(0, 60) d
) made;

insert into feature_flags
select tenant_id, key, value::jsonb from new_tenants, (values
    ('new_checkout', 'false'), ('dark_mode', 'true'), ('search_v2', '{"rollout": 10}'),
    ('gift_cards', 'true'), ('bulk_edit', 'false'), ('ai_descriptions', '{"rollout": 0}')
) f (key, value);
