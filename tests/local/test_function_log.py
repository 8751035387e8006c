from local.function_log import objects_in


def test_objects_come_in_the_order_they_were_written():
    assert list(objects_in('{"a": 1}\n{"b": {"c": 2}}\n')) == [{"a": 1}, {"b": {"c": 2}}]


def test_objects_of_several_processes_may_stand_on_one_line():
    assert list(objects_in('{"a": 1}{"b": 2}\n\n{"c": 3}\n')) == [{"a": 1}, {"b": 2}, {"c": 3}]


def test_what_is_no_json_is_passed_over():
    log = 'START\n{"a": 1}2026-11-22T13:00:00Z Task timed out {"b": 2}\n{"cut": \n{"c": 3}\n'

    assert list(objects_in(log)) == [{"a": 1}, {"c": 3}]
