-- The labels of locations, for lists by label: each label's locations in the order of their creation.
-- Triggers keep it, so that writes past the service are in it too.
CREATE TABLE location_labels (
    label_key            TEXT    NOT NULL,
    label_value          TEXT    NOT NULL,
    location_create_time INTEGER NOT NULL,
    location_id          BLOB    NOT NULL,
    PRIMARY KEY (label_key, label_value, location_create_time, location_id)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER locations_insert_labels AFTER INSERT ON locations WHEN NEW.labels <> '{}'
BEGIN
    INSERT INTO location_labels (label_key, label_value, location_create_time, location_id)
    SELECT label.key, label.value, NEW.create_time, NEW.id FROM json_each(NEW.labels) AS label;
END;

CREATE TRIGGER locations_delete_labels AFTER DELETE ON locations WHEN OLD.labels <> '{}'
BEGIN
    DELETE FROM location_labels
    WHERE (label_key, label_value) IN (SELECT label.key, label.value FROM json_each(OLD.labels) AS label)
        AND location_create_time = OLD.create_time AND location_id = OLD.id;
END;

CREATE TRIGGER locations_update_labels AFTER UPDATE ON locations
WHEN (OLD.labels, OLD.create_time, OLD.id) IS NOT (NEW.labels, NEW.create_time, NEW.id)
BEGIN
    DELETE FROM location_labels
    WHERE (label_key, label_value) IN (SELECT label.key, label.value FROM json_each(OLD.labels) AS label)
        AND location_create_time = OLD.create_time AND location_id = OLD.id;
    INSERT INTO location_labels (label_key, label_value, location_create_time, location_id)
    SELECT label.key, label.value, NEW.create_time, NEW.id FROM json_each(NEW.labels) AS label;
END;

INSERT INTO location_labels (label_key, label_value, location_create_time, location_id)
SELECT label.key, label.value, create_time, locations.id
FROM locations, json_each(labels) AS label
WHERE labels <> '{}';
