-- The labels of locations, for lists by label: each label's locations in the order of their creation.
-- Triggers keep it, so that writes past the service and by older releases are in it too.
CREATE TABLE location_labels (
    label_key            TEXT   COLLATE "C" NOT NULL,
    label_value          TEXT   COLLATE "C" NOT NULL,
    location_create_time BIGINT NOT NULL,
    location_id          UUID   NOT NULL,
    PRIMARY KEY (label_key, label_value, location_create_time, location_id)
);

CREATE FUNCTION add_location_labels() RETURNS TRIGGER
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO location_labels (label_key, label_value, location_create_time, location_id)
    SELECT label.key, label.value, NEW.create_time, NEW.id
    FROM json_each_text(NEW.labels::json) AS label;
    RETURN NULL;
END $$;

CREATE FUNCTION remove_location_labels() RETURNS TRIGGER
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM location_labels USING json_each_text(OLD.labels::json) AS label
    WHERE label_key = label.key AND label_value = label.value
        AND location_create_time = OLD.create_time AND location_id = OLD.id;
    RETURN NULL;
END $$;

CREATE TRIGGER locations_insert_labels AFTER INSERT ON locations FOR EACH ROW
WHEN (NEW.labels <> '{}') EXECUTE FUNCTION add_location_labels();

CREATE TRIGGER locations_delete_labels AFTER DELETE ON locations FOR EACH ROW
WHEN (OLD.labels <> '{}') EXECUTE FUNCTION remove_location_labels();

-- Triggers run in the order of their names: the old labels are removed first.
CREATE TRIGGER locations_update_labels_1 AFTER UPDATE ON locations FOR EACH ROW
WHEN ((OLD.labels, OLD.create_time, OLD.id) IS DISTINCT FROM (NEW.labels, NEW.create_time, NEW.id))
EXECUTE FUNCTION remove_location_labels();

CREATE TRIGGER locations_update_labels_2 AFTER UPDATE ON locations FOR EACH ROW
WHEN ((OLD.labels, OLD.create_time, OLD.id) IS DISTINCT FROM (NEW.labels, NEW.create_time, NEW.id))
EXECUTE FUNCTION add_location_labels();

INSERT INTO location_labels (label_key, label_value, location_create_time, location_id)
SELECT label.key, label.value, create_time, id
FROM locations, json_each_text(labels::json) AS label
WHERE labels <> '{}';
