"""The parameter node: what is written is read back, and scenes of other versions do no harm."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.gui


def test_what_is_written_is_read_back(ct: Any) -> None:
    from VelvetMedCore.parameters import Parameters, parameter_node, read_parameters, write_parameters

    written = Parameters(model="demo", style="terse", findings_filter="all", inputVolume=ct.GetID())
    write_parameters(parameter_node(), written)
    assert read_parameters(parameter_node()) == written


def test_an_empty_node_gives_the_defaults(scene: Any) -> None:
    from VelvetMedCore.parameters import Parameters, parameter_node, read_parameters

    assert read_parameters(parameter_node()) == Parameters()


def test_unknown_parameters_are_ignored_and_kept(scene: Any) -> None:
    from VelvetMedCore.parameters import Parameters, parameter_node, read_parameters, write_parameters

    node = parameter_node()
    node.SetParameter("VelvetMed.of_a_later_version", "17")
    node.SetNodeReferenceID("heatmap", node.GetID())
    write_parameters(node, Parameters(model="demo"))
    assert read_parameters(node).model == "demo"
    assert node.GetParameter("VelvetMed.of_a_later_version") == "17" and node.GetNodeReference("heatmap") is node


def test_an_empty_value_becomes_the_default(scene: Any) -> None:
    from VelvetMedCore.parameters import parameter_node, read_parameters

    parameter_node().SetParameter("VelvetMed.findings_filter", "")
    assert read_parameters(parameter_node()).findings_filter == "relevant"


def test_a_reference_to_a_deleted_node_reads_as_none(scene: Any, ct: Any) -> None:
    from VelvetMedCore.parameters import Parameters, parameter_node, read_parameters, write_parameters

    write_parameters(parameter_node(), Parameters(inputVolume=ct.GetID()))
    scene.RemoveNode(ct)
    assert read_parameters(parameter_node()).inputVolume is None


def test_the_parameter_node_is_still_the_modules_own_after_a_scene_was_closed(scene: Any) -> None:
    from VelvetMedCore.parameters import parameter_node

    parameter_node()
    scene.Clear(0)
    assert parameter_node().GetModuleName() == "VelvetMed"


def test_there_is_one_parameter_node_however_often_it_is_asked_for(scene: Any) -> None:
    from VelvetMedCore.parameters import parameter_node

    assert parameter_node() is parameter_node()
    nodes = [
        scene.GetNthNodeByClass(n, "vtkMRMLScriptedModuleNode") for n in range(scene.GetNumberOfNodesByClass("vtkMRMLScriptedModuleNode"))
    ]
    assert [node.GetModuleName() for node in nodes].count("VelvetMed") == 1
