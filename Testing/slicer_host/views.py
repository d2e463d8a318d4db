"""Offscreen pictures of the host's scene: slice views and a 3D view, drawn by slicer-core's own displayable managers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import slicer
import vtk

SLICE_MANAGERS = (
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLCrosshairDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
)
VIEW_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
    "vtkMRMLOrientationMarkerDisplayableManager",
)
AXES_MARKER = 3  # the human figure (2) needs a mesh that the wheel lacks


class OffscreenViews:
    """Views of `slicer.mrmlScene`. The slice nodes exist from construction, so that jumping moves them."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self._application_logic = slicer.app.applicationLogic()
        self._keep: list[Any] = []  # VTK and MRML objects die, and take the window with them, when Python forgets them
        self.slices: dict[str, tuple[Any, Any]] = {}

    def _window(self) -> tuple[Any, Any]:
        window = vtk.vtkRenderWindow()
        window.SetOffScreenRendering(1)
        window.ShowWindowOff()
        window.SetSize(*self.size)
        renderer = vtk.vtkRenderer()
        window.AddRenderer(renderer)
        interactor = vtk.vtkRenderWindowInteractor()
        interactor.SetRenderWindow(window)
        interactor.Initialize()
        self._keep += [window, renderer, interactor]
        return window, renderer

    def _managers(self, factory_class: Any, names: Sequence[str], renderer: Any) -> Any:
        factory = factory_class.GetInstance()
        factory.SetMRMLApplicationLogic(self._application_logic)
        for name in names:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        group = slicer.vtkMRMLDisplayableManagerGroup()
        group.SetRenderer(renderer)
        group.Initialize(factory, renderer)
        self._keep.append(group)
        return group

    def add_slice(self, orientation: str, volume: Any) -> None:
        """One slice view, fitted to the volume."""
        window, renderer = self._window()
        renderer.GetActiveCamera().ParallelProjectionOn()
        overlay = vtk.vtkRenderer()  # markers and rulers are drawn on layer 1
        overlay.SetLayer(1)
        overlay.GetActiveCamera().ParallelProjectionOn()
        window.SetNumberOfLayers(2)
        window.AddRenderer(overlay)
        logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLApplicationLogic(self._application_logic)
        self._application_logic.GetSliceLogics().AddItem(logic)
        logic.SetMRMLScene(slicer.mrmlScene)
        node = logic.AddSliceNode(orientation)
        node.SetOrientation(orientation)
        node.SetMappedInLayout(1)
        # Slicer's Qt widget draws the slice image itself; here a 2D actor does, added first so that segments are blended over it.
        mapper = vtk.vtkImageMapper()
        mapper.SetColorWindow(255)
        mapper.SetColorLevel(127.5)
        actor = vtk.vtkActor2D()
        actor.SetMapper(mapper)
        actor.GetProperty().SetDisplayLocationToBackground()
        renderer.AddViewProp(actor)
        group = self._managers(slicer.vtkMRMLSliceViewDisplayableManagerFactory, SLICE_MANAGERS, renderer)
        group.SetMRMLDisplayableNode(node)
        logic.GetSliceCompositeNode().SetBackgroundVolumeID(volume.GetID())
        logic.ResizeSliceNode(*self.size)
        logic.FitSliceToBackground()
        mapper.SetInputConnection(logic.GetImageDataConnection())  # there is none before a background is set
        self._keep += [overlay, logic, actor, mapper]
        self.slices[orientation] = (window, node)

    def save_slice(self, orientation: str, path: Path) -> None:
        window, _ = self.slices[orientation]
        save_png(window, path)

    def save_3d(self, path: Path, *, azimuth: float = 0.0, elevation: float = 0.0, zoom: float = 1.0) -> None:
        """A 3D view of what is visible, seen from the front and then turned."""
        window, renderer = self._window()
        group = self._managers(slicer.vtkMRMLThreeDViewDisplayableManagerFactory, VIEW_MANAGERS, renderer)
        logic = slicer.vtkMRMLViewLogic()
        logic.SetMRMLApplicationLogic(self._application_logic)
        logic.SetMRMLScene(slicer.mrmlScene)
        node = logic.AddViewNode("1")
        node.SetMappedInLayout(1)
        node.SetBoxVisible(False)
        node.SetAxisLabelsVisible(False)
        node.SetOrientationMarkerType(AXES_MARKER)
        self._application_logic.GetViewLogics().AddItem(logic)
        group.SetMRMLDisplayableNode(node)
        self._keep.append(logic)
        window.Render()  # sets the managers up; only then can the camera be moved
        camera = renderer.GetActiveCamera()
        camera.SetFocalPoint(0, 0, 0)
        camera.SetPosition(0, 1, 0)
        camera.SetViewUp(0, 0, 1)
        camera.Azimuth(azimuth)
        camera.Elevation(elevation)
        renderer.ResetCamera()
        camera.Zoom(zoom)
        renderer.SetBackground(0.16, 0.16, 0.2)
        renderer.SetBackground2(0.30, 0.30, 0.38)
        save_png(window, path)


def save_png(window: Any, path: Path) -> None:
    """Renders the window and writes what it shows."""
    window.Render()
    grab = vtk.vtkWindowToImageFilter()
    grab.SetInput(window)
    grab.ReadFrontBufferOff()
    grab.Update()
    writer = vtk.vtkPNGWriter()
    writer.SetFileName(str(path))
    writer.SetInputConnection(grab.GetOutputPort())
    writer.Write()
